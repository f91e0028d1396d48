"""The commands: flags to one library call. The only room that parses, prints and exits."""
