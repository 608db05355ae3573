"""Properties held over random draws: a quick set in the suite, as many as wanted from the command line."""
