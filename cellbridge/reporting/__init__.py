"""What `report` shows: numbers of metrics.json and logs into the plain values that the templates lay out. Nothing is computed anew."""
