"""What chose defaults, and the runs and trainings behind the bundled models; run from a clone, not installed."""
