"""The command of the chat, without Ray and without a DAG."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from models.chat.talk import Talk

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  sluice chat demo/model/model --image cat.jpg
  sluice chat demo/model/model --image cat.jpg --ask "What colour is the cat?"
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="To talk about; repeatable.")
@click.option("--ask", "question", help="One question; the answer goes to standard output, and no terminal is needed.")
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(min=1), help="Of an answer, at most.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0), help="0 draws nothing.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda, cuda:1.")
def main(
    checkpoint: Path, images: tuple[Path, ...], question: str | None, tokens: int, temperature: float, device: str
) -> None:
    """Talk with CHECKPOINT, a model that a training left (a folder that transformers loads), about images.

    Answers come as they are written. Ctrl-C ends an answer, and the talk where none is under way; so does Ctrl-D.
    """
    if question is not None and not question.strip():
        raise click.ClickException("--ask is empty; say what you want to know")
    if question is None and not sys.stdin.isatty():
        raise click.ClickException('there is no terminal to talk in; give one question with --ask "…"')
    if not checkpoint.is_dir():
        raise click.ClickException(f"there is no folder {checkpoint}; name the `model` folder of a training")
    from models.chat.talk import Talk, TalkError  # torch and transformers: seconds, paid once the arguments are right

    try:
        talk = Talk.load(checkpoint, images, device)
        if question is not None:
            _answer(talk, question, tokens, temperature)
            return
        click.echo("Ctrl-C ends an answer, Ctrl-D the talk.", err=True)
        while True:
            try:
                asked = input("> ").strip()
            except EOFError:
                click.echo()
                return
            if not asked:
                click.echo("say something, or end with Ctrl-D", err=True)
                continue
            try:
                _answer(talk, asked, tokens, temperature)
            except KeyboardInterrupt:
                click.echo(" …")
    except TalkError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("\nstopped", err=True)
        sys.exit(STOPPED)


def _answer(talk: Talk, question: str, tokens: int, temperature: float) -> None:
    for piece in talk.ask(question, tokens, temperature):
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


if __name__ == "__main__":
    main(prog_name="python -m models.chat")
