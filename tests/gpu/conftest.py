"""A run on a GPU may be cut off: each failure is printed as soon as it is known."""


def pytest_runtest_logreport(report) -> None:
    if report.failed:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)


pytest_collectreport = pytest_runtest_logreport
