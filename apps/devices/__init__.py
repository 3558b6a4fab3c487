"""Other computers that this one runs on: a board over ssh, a phone over adb, or a folder of its own here."""
