"""The order of the work: command line, driver, stages and report. No tensor mathematics."""
