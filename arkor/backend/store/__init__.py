"""The database of the backend, and how it is rebuilt or extended from run folders."""
