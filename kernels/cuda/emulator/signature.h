// What the compiler deduced of each kernel's parameters, in the codes of signatures.py.
// Included by emulator.h, inside its namespace.
template <class T> char code() {                  // NumPy's type characters; V: any other type
    if (std::is_same_v<T, _Float16>) return 'e';
    if (std::is_floating_point_v<T>) return sizeof(T) == 4 ? 'f' : 'd';
    if (!std::is_integral_v<T>) return 'V';
    const char* by_size = std::is_signed_v<T> ? "?bh?i???q" : "?BH?I???Q";
    return std::is_same_v<T, bool> ? '?' : by_size[sizeof(T)];
}
template <class T> std::string parameter_code() {
    if constexpr (std::is_pointer_v<T>)
        return std::string("P") + code<std::remove_cv_t<std::remove_pointer_t<T>>>();
    else return std::string(1, code<T>());
}
template <auto KERNEL_FUNCTION, class... A, size_t... I>
inline void call_with(void (*)(A...), void** a, std::index_sequence<I...>) { KERNEL_FUNCTION(*(A*)a[I]...); }
template <auto KERNEL_FUNCTION, class... A> int add_kernel(const char* name, void (*)(A...)) {
    kernels().push_back({name, [](void** a) {
        call_with<KERNEL_FUNCTION>((void (*)(A...))nullptr, a, std::index_sequence_for<A...>());
    }, (parameter_code<A>() + ... + "")});
    return 0;
}
#define EMULATED_KERNEL(name) static int emulator_has_##name = emulator::add_kernel<name>(#name, name);
