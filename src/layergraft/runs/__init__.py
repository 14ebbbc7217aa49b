"""One run: planned (`plan`), built (`build`), trained and recorded (`train`); its similarity measures and its export."""
