"""pixels of the engine: see also test_stages_recover, which holds the whole run against slow references."""
