"""What became of a test, as it is reported: facts, problems without frames, and what its machine had to say."""

from typing import Any

import pytest

from imagekit.bench import BENCH, is_problem
from imagekit.collection import image_of, point


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Facts travel with the report; a Problem is shown without frames, and a guest's console beside what failed."""
    item.config.stash[BENCH].lines.clear()
    if call.when == "setup" and (image := image_of(item)):
        from imagekit import report

        bench = item.config.stash[BENCH]
        item.user_properties += report.told(image.name, (item.path, *point(item)), bench.facts, bench.told)
    facts = getattr(getattr(item, "funcargs", {}).get("guest"), "facts", None)  # others' "guest" is anything
    if call.when == "call" and isinstance(facts, dict):
        from imagekit import report

        item.user_properties += report.booted(facts)
    if call.excinfo and not isinstance(call.excinfo.value, pytest.skip.Exception):
        console = getattr(getattr(item, "funcargs", {}).get("guest"), "console", None)
        if console and call.when:
            item.add_report_section(call.when, "stdout guest console", console.end(60))
        if is_problem(call.excinfo.value):
            failure = pytest.fail.Exception(str(call.excinfo.value), pytrace=False)
            call.excinfo = pytest.ExceptionInfo.from_exception(failure.with_traceback(call.excinfo.tb))
    return (yield)
