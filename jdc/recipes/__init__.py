"""Methods that need several runs, one after the other; each run resumes as it does alone."""
