"""The time that is left of some work, as every progress line says it."""


def eta(elapsed_sec: float, done: float, left: float) -> str:
    """h:mm:ss for what is left, at the speed of what was done in the seconds before; "?" while nothing was."""
    if done <= 0:
        return "?"
    seconds = int(elapsed_sec / done * max(0, left))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
