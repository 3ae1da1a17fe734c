"""What all tests start from."""

import contextlib
import functools
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs beside it
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):  # a machine with a GPU may have pytest alone
    from hypothesis import HealthCheck, settings

    # How long an example takes says more of other work on the machine than of the code.
    settings.register_profile("rib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("rib")

with contextlib.suppress(ImportError):
    import vl_convert

    # The same script for every page that has figures; it takes over a second.
    vl_convert.javascript_bundle = functools.cache(vl_convert.javascript_bundle)
