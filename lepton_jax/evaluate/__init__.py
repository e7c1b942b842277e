"""What predictions are worth: metrics, calibration, intervals, slices, comparisons and baselines, on the host, in NumPy."""
