"""Networks that are trained here and kept: those that donors are cut out of."""
