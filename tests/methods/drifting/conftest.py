import pytest


@pytest.fixture(scope="module", params=[True, False], ids=["wait", "no-wait"])
def wait(request):
    """Whether the host may read values and choose by them, as it does not on a GPU. Tests hold in both cases."""
    return request.param
