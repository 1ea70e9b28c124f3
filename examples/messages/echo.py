"""Sends each message back in capitals.

On its own it takes messages from standard input, each behind its length:

    export PYTHONPATH="$(python3 -c 'import kvmlet; print(kvmlet.get_include())')/../python"
    printf '\\5\\0\\0\\0hello' | python3 echo.py | od -c
"""

import kvmlet_guest

kvmlet_guest.serve(bytes.upper)
