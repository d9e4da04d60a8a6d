"""Completions and man pages know all commands and flags that there are."""

import re
import tempfile
import unittest
from pathlib import Path

from project import run
from test_settings import BINARY, COMMANDS, defined

# Puts words into the place of a line being typed, as bash does, and prints what
# the script offers for the last one.
COMPLETE = """
source <("$0" completions bash)
handler=$(complete -p workflow-secrets | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$handler" workflow-secrets "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


class CommandLine(unittest.TestCase):
    def test_bash_completes_every_flag_of_each_command(self):
        for command in (*COMMANDS, "completions", "man"):
            words = ["workflow-secrets", *command.split(), "--"]
            offered = run("bash", "-c", COMPLETE, BINARY, *words)
            self.assertEqual(offered.returncode, 0, offered.stdout)
            self.assertEqual(set(offered.stdout.split()) - {"--help"}, defined(command), command)

    def test_other_shells_have_a_script(self):
        for shell in ("elvish", "fish", "powershell", "zsh"):
            script = run(BINARY, "completions", shell)
            self.assertEqual(script.returncode, 0)
            for name in ("reencrypt", "kms-previous-key"):
                self.assertIn(name, script.stdout, shell)
        self.assertEqual(run(BINARY, "completions", "ksh").returncode, 64)

    def test_each_command_has_a_man_page_with_all_its_flags(self):
        with tempfile.TemporaryDirectory(prefix="wfs-man-") as directory:
            written = run(BINARY, "man", directory)
            self.assertEqual((written.returncode, written.stdout), (0, ""))
            for command in COMMANDS:
                page = Path(directory) / f"workflow-secrets-{command.replace(' ', '-')}.1"
                text = page.read_text().replace("\\-", "-")
                self.assertTrue(re.search(r"(?m)^\.TH workflow-secrets-", text))
                options = text[text.index("\n.SH OPTIONS") :]
                flags = set(re.findall(r"(?m)^\\fB(--[a-z-]+)\\fR", options)) - {"--help"}
                self.assertEqual(flags, defined(command), command)
            missing = run(BINARY, "man", f"{directory}/missing")
            self.assertEqual(missing.returncode, 70)
            self.assertIn(f"{directory}/missing: ", missing.stdout)


if __name__ == "__main__":
    unittest.main()
