"""MLflow runs and the HTML report."""
