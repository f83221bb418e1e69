"""Measures what Watchword promises about speed and size, each figure beside a floor or ceiling of the same run."""
