"""MLflow: the store, a run's life, figures, comparisons. Importing it does not import MLflow."""
