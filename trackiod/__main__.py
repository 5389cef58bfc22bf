"""`python -m trackiod run`: how a daemon process begins, without the command line's packages; `keep`,
`send`, `copy`, `look`, `check`, `upload` and `sample`: its children."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> int:
    """The words that a daemon starts itself and its children with; the command line for people is `trackiod`."""
    os.umask(0o077)  # whoever started us may have an open one
    if arguments == ["keep"]:
        from trackiod import keeper

        return keeper.main()
    if arguments == ["send"]:
        from trackiod import webhooks

        return webhooks.main()
    if arguments[:1] == ["upload"]:
        from trackiod.uploads import uploader

        return uploader.main(*arguments[1:])
    if arguments == ["copy"]:
        from trackiod.sinks import directory

        return directory.main()
    if arguments == ["look"]:
        from trackiod import elsewhere

        return elsewhere.main()
    if arguments[:1] == ["check"] and len(arguments) == 2:
        from trackiod import suspects

        return suspects.main(arguments[1])
    if arguments[:1] == ["sample"]:
        if "--detach" in arguments and os.fork():
            return 0
        from trackiod.sampler import sampler

        return sampler.main(hosted="--hosted" in arguments, told=" ".join(arguments[1:] if len(arguments) == 2 else []))
    if arguments[:1] != ["run"] or not {*arguments[1:]} <= {"--detach", "--autostarted"}:
        sys.stderr.write("usage: python -m trackiod run [--detach] [--autostarted]\n")
        return 2
    from trackiod.daemon import run

    return run(detach="--detach" in arguments, autostarted="--autostarted" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
