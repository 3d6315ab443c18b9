"""Time of one NGDiff step, beside other ways to write it and beside what the memory of the device allows."""
