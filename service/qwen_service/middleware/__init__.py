"""What stands around every route: keys, limits, the log line and the metrics of a request."""
