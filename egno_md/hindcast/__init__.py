"""What the forecasts of a run are worth on its own last windows, and which of them is taken for that."""
