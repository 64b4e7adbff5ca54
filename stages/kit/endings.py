"""What an image's bytes are, going by how they begin: a tar member's ending must not lie to its readers."""


def ending_of(head: bytes) -> str | None:
    """The ending that fits an image's first 12 bytes; None where they are no JPEG, PNG, WebP or GIF."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "gif" if head[:6] in (b"GIF87a", b"GIF89a") else None
