"""From a plan of arms and seeds to a report."""
