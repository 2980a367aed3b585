"""Networks of the paper's comparison that build on a library; a file is imported when one of its operators is built."""
