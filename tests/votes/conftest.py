from tests.helpers.databases import any_store, postgres, store  # noqa: F401 - fixtures
