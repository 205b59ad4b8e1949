def usual(
    entries: list[tuple[str, int, int]],
    at: int,
    extensions: tuple[str, ...],
    companion: str,
    open_key: str,
    seen: set[str],
    max_bytes: int,
    /,
) -> tuple[list[tuple[str, int, int, int, int, int]], int]: ...
