"""The pipeline: Prefect flows and tasks over the asset store and the engine."""
