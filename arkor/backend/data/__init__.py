"""A data source → checked rows: fetched, read, recognised, every fault named."""
