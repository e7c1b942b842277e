"""What predictions are worth: metrics, calibration, intervals, slices, comparisons, baselines; on the host."""
