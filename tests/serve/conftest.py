from tests.helpers.browser import browser  # noqa: F401
