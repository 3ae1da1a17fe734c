"""A run on a GPU may be cut off: each failure is printed as soon as it is known."""


class AtOnce:
    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)

    pytest_collectreport = pytest_runtest_logreport


def pytest_configure(config) -> None:
    config.pluginmanager.register(AtOnce())  # a conftest's own hooks hear of its folder alone
