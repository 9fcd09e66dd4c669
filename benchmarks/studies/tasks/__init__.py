"""The tasks that ship with Trimline, made: five of about 200 questions with four answers each, from word lists of ours and from arithmetic."""
