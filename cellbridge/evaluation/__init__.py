"""Where stores, translators and metrics meet: from what was given to evaluate, to the numbers, sections and verdicts of `metrics.json`."""
