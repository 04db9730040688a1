"""What a campaign is and what it costs: the YAML, its plan, sweeps and rates."""
