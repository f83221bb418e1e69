"""`scripts/top`: a running stack at a glance, in a terminal, from nothing but what its processes tell Prometheus."""
