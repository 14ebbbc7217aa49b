"""What learns, when and how fast: a pure plan, schedules of the learning rate, the plan over the epochs as plain data."""
