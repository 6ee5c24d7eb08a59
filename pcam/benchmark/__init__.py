"""Speed, measured against what others do. The command `benchmark` runs these measurements."""
