"""Studies across papers: models on the schedules of other families, models of text, schedules, a demonstration."""
