"""From typicality maps to visual elements: boxes -> patches -> features -> clusters -> tables."""
