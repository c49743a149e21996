/* The shared library that program.c calls through. */

__attribute__((noipa)) int lib_twice(int (*callback)(int), int argument)
{
	volatile char padding[200] = { (char)argument };
	return callback(argument) + padding[0];
}

__attribute__((noipa)) int lib_untouched(int argument)
{
	return argument + 1;
}
