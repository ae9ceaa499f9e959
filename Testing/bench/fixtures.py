"""pytest fixtures: ``from bench.fixtures import application`` in a test file."""

from __future__ import annotations

import pytest

from bench import dialogs, start_application


@pytest.fixture
def application():
    """The running application with an empty scene; afterwards nothing may have gone wrong unseen."""
    app = start_application()
    app.close_scene()
    app.errors.clear()
    dialogs.clear()
    yield app
    app.processEvents()
    errors = list(app.errors)
    app.mainWindow().hide()
    app.close_scene()
    assert not errors, f"errors in slots, observers or VTK: {errors}"
