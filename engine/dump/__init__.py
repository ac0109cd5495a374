"""What `offload-dump` reports: a plan as text, JSON and a page."""
