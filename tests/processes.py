import psutil


def runs(pid: int) -> bool:
    """Whether the process is there and is more than an exit status that nobody has read."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
