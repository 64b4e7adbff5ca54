"""New captions for the images of a pool: written by a model or a server, then told beside those of the web."""

from stages.recaption.captions import Captions
from stages.recaption.recaption import Recaption
from stages.recaption.server import RecaptionByServer

__all__ = ["Captions", "Recaption", "RecaptionByServer"]
