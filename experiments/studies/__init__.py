"""Studies across papers: models on the schedules of other families."""
