"""Where a run computes: devices, hosts, and how their workers meet."""
