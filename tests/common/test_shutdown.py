"""A process notices that its parent is gone, and ends even if it can do nothing about it any more."""

import asyncio
import os
import subprocess
import sys

from pagewire_common.shutdown import watch_parent


async def test_the_parents_end_is_noticed_on_the_event_loop() -> None:
    read_end, write_end = os.pipe()
    gone: asyncio.Future[asyncio.AbstractEventLoop] = asyncio.get_running_loop().create_future()
    watch_parent(
        lambda: gone.set_result(asyncio.get_running_loop()), file_descriptor=read_end, forced_exit_after_s=86_400
    )
    os.write(write_end, b"ignored")
    await asyncio.sleep(0.02)
    assert not gone.done()
    os.close(write_end)
    async with asyncio.timeout(5):
        assert await gone is asyncio.get_running_loop()
    os.close(read_end)


def test_a_process_that_hangs_is_ended_the_hard_way() -> None:
    script = (
        "import asyncio, time\n"
        "from pagewire_common.shutdown import watch_parent\n"
        "async def hang():\n"
        "    watch_parent(lambda: None, forced_exit_after_s=0.1)\n"
        "    time.sleep(300)\n"
        "asyncio.run(hang())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, timeout=180, check=False)
    assert done.returncode == 1
